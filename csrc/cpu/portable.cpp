// The kernels for the compiler's baseline: SSE2 on x86-64, NEON on AArch64, plain code elsewhere.
#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/kernels.h"

#define MFAC_ISA portable
#define MFAC_LANES 2
#define MFAC_TILE_ROWS 4
#define MFAC_PANEL_VECTORS 2

#include "cpu/table.inl"
