"""Quantisers: `pact`, `hwgq`, the staircase that mixes their widths, and the layers that use them."""
