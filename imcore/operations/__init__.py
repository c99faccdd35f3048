"""The operations of `Chat`, as generators that yield effects, and what performs them.

The methods of `Chat` document the operations that they perform.
"""
