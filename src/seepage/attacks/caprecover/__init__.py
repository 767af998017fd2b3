"""CapRecover: captions and labels from a leak, by a Q-Former in front of a frozen language model."""
