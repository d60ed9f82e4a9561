"""The one command, `shardfeed`: `main` gathers the sub-commands, one module each; what is heavy is imported late."""
