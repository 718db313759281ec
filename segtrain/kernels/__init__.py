"""The fused operations behind the losses; they import nothing of ours but the errors."""
