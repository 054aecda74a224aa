"""What belongs to the policy's training beside the training itself: further warm-ups, a second search of the text."""
