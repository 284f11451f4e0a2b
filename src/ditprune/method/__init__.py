"""THE METHOD: pure tensor maths, from a recipe to a mask and new weights. See README.md."""
