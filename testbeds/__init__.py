"""Small text-to-image test beds: scenes that are drawn, said in words and read back."""
