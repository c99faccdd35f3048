"""The operations of `Chat`, as generators that yield effects, and what performs them."""
