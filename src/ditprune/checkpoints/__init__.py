"""ON DISK: finding a model, reading its weights one by one, writing a result all or nothing."""
