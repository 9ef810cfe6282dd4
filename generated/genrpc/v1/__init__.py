"""Generated from protos/ by tools/generate.py. Do not edit."""
