"""BY WHICH NUMBER: pure functions over tensors, around kept libraries where there is one."""
