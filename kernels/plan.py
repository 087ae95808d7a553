from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    strategy: str
    tile: int = 16
    units: int = 32
    depth: int = 64
    warps: int = 4
    stages: int = 2
    product: str = "fused"
    precision: str = "ieee"
    reason: str = ""
