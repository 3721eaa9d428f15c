from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    cplusplus: int
    isas_built: list[str]
    isa_chosen: str
    oldest_torch: str
    cuda_toolkit: str | None
    cuda_architectures: list[str]

class Limits(TypedDict):
    scale_columns: int
    packet_bytes: int
    topk_tile_columns: int
    topk_block_columns: int
    nm_group: int

def build_info() -> BuildInfo: ...
def limits() -> Limits: ...
