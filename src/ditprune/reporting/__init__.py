"""Results for people: the page of an evaluation, and the card of a pruned model."""
