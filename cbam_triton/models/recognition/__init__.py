"""What a module computes, read off a trace of its forward, and the proof that it is a CBAM.

The conversion of models imports it; it imports spec and nothing else of the package.
"""
