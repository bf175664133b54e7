"""Where pixels come from: sources, the batch plan and the Lightning data modules."""
