"""mapolicy and other projects: a bundle's policy in their trainers, a run's figures in their loggers.

Nothing here is imported by `import mapolicy`. Each module of a trainer imports its own project only.
"""
