"""The float model: built, read from a checkpoint, taken apart into modules, and written as TorchScript."""
