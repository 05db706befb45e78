"""The command line. Each command parses, builds, runs, closes; the work is the library's."""
