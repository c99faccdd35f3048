"""How the product's source is built: figures that no reader has to believe, each measured here and held by a test."""
