"""What a checkpoint does with images: which run many blocks, how steady its decisions are, what an attacker gains."""
