"""What frozen features are worth: tasks' metrics, features, and the probes fitted on them."""
