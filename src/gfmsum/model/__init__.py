"""The one encoder and masked autoencoder that every arm trains. Takes tensors and bands, no batch objects."""
