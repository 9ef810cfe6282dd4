raise OSError("the disk is full")
