"""Things on the disk that are made once: who may write them (`lock`), and whether they are as made (`manifest`)."""
