from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cplusplus: int
    isas_built: list[str]
    isa_chosen: str
    oldest_torch: str
    cuda_toolkit: str | None
    cuda_architectures: list[str]

def build_info() -> BuildInfo: ...
