"""Does the right hat sit on the right head? Scenes of the drawn world, made and judged.

models   what makes clips: an engine, the PyTorch reference of a bundle, or its VAE alone
suite    every scene of a list made, judged and kept; a run that was killed goes on
table    results as rates with intervals, and differences between two runs
page     some scenes as a picture: what was asked for, what was made, what was seen
command  the four of them together
"""
