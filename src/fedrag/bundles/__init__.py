"""The folder of a saved system: how it is written and read, its card, how two of them differ, and the hub."""
