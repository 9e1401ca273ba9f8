"""Is it the same video? Engines against the PyTorch reference.

parity       verify: forward passes and whole samplings, from the same noise
gates        how far apart they may be; quirks: each undone, to see that it is told apart
comparison   videos and latents of both, and the worst scene as a picture
certificate  what stands of that, and what `load` makes of it
report       report.md and report.json
diagnosis    where numbers stopped being finite
"""
