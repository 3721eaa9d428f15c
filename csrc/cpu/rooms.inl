// The rooms that have CPU kernels: the one list that a new op adds to, two lines each. It is
// included for two purposes.
//
// With MFAC_ROOM_FILE(path) defined as the name of one of a room's files: `path`_kernels.h, which
// declares the kernels (cpu/kernels.h), or `path`_cpu.inl, their text, compiled once for every
// instruction set (cpu/table.inl). A text may use the texts above it.
#if defined(MFAC_ROOM_FILE)
// clang-format off
#include MFAC_ROOM_FILE(window/window_dot/window_dot)
#include MFAC_ROOM_FILE(window/window_combine/window_combine)
#include MFAC_ROOM_FILE(window/window_push/window_push)
#include MFAC_ROOM_FILE(window/topk/topk)
#include MFAC_ROOM_FILE(window/capacitance/capacitance)
#include MFAC_ROOM_FILE(curvature/squared_norms/squared_norms)
#include MFAC_ROOM_FILE(curvature/gram/gram)
#include MFAC_ROOM_FILE(curvature/whitened_norms/whitened_norms)
#include MFAC_ROOM_FILE(curvature/block_fisher/block_fisher)
#include MFAC_ROOM_FILE(pruning/nm_mask/nm_mask)
#include MFAC_ROOM_FILE(layerwise/obs_sweep/obs_sweep)
#include MFAC_ROOM_FILE(layerwise/obs_eliminate/obs_eliminate)
#include MFAC_ROOM_FILE(layerwise/restricted_solve/restricted_solve)
// clang-format on
#undef MFAC_ROOM_FILE
#endif

// And with MFAC_ROOM(room) defined as what is to be done with the kernels that a room declares.
#if defined(MFAC_ROOM)
MFAC_ROOM(WindowDotRoom)
MFAC_ROOM(WindowCombineRoom)
MFAC_ROOM(WindowPushRoom)
MFAC_ROOM(TopKRoom)
MFAC_ROOM(CapacitanceRoom)
MFAC_ROOM(SquaredNormsRoom)
MFAC_ROOM(GramRoom)
MFAC_ROOM(WhitenedNormsRoom)
MFAC_ROOM(BlockFisherRoom)
MFAC_ROOM(NMMaskRoom)
MFAC_ROOM(ObsSweepRoom)
MFAC_ROOM(ObsEliminateRoom)
MFAC_ROOM(RestrictedSolveRoom)
#undef MFAC_ROOM
#endif
