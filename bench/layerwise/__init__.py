"""What layer-wise compression does to real networks, and how long solvers take.

    python -m bench.layerwise [solvers speed digits sentences language]

Networks and texts are fetched from package registries and cached. Calibration and evaluation never
share data.
"""
