"""Does the right hat sit on the right head? Scenes of the drawn world, made and judged.

models   what makes clips: an engine, the PyTorch reference of a bundle, or its VAE alone
suite    every scene of a list made, judged and kept; a run that was killed goes on
table    results as rates with intervals, and differences between two runs
page     some scenes as a picture: what was asked for, what was made, what was seen
command  the four of them together

And how long does it take? (`--suite speed`)

speed          cases of an engine, timed: requests, steps, growth, throughput, against the reference
cold           a first request in a process of its own
roofline       the useful work of a step
speed_page     a table, and a picture of curves
speed_command  the three of them together
times, machine, folder, charts    percentiles and ratios, where it ran, what is kept, drawing
"""
