"""What a transformer is made of, in one vocabulary for all families; one adapter file for each family."""
