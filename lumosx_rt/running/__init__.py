"""What a request goes through: bound, denoised, decoded, guarded, served.

runtime     one request on one backend: noise, guided steps, frames
guards      what ends a request whose output would be no video, and the counts
memory      what a request needs, told before it starts; remembered: what is kept for the next
serving     many requests, batched and overlapping; streaming: one, told step by step
batch       `generate` over folders of scenes
"""
