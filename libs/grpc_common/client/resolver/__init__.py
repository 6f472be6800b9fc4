"""Where endpoints come from: what a target means, and how its endpoints are followed."""
