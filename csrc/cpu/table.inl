// Instantiates every kernel for one instruction set and fills its table. Included by <isa>.cpp,
// which defines MFAC_LANES, MFAC_TILE_ROWS, MFAC_PANEL_VECTORS and MFAC_ISA and sets the target
// pragma.

namespace mfac {
namespace {

#include "cpu/vec.inl"

#include "cpu/tile.inl"

#define MFAC_ROOM_FILE(path) MFAC_STRING(path##_cpu.inl)
#include "cpu/rooms.inl"

// Every text ends with functions `fill`, one for each struct of kernels that its room declares.
template <typename Kernels>
constexpr void fill_all(Kernels& kernels) {
  fill(kernels);
}
template <typename... Kernels>
constexpr void fill_all(Instances<Kernels...>& room) {
  (fill_all(static_cast<Kernels&>(room)), ...);
}

constexpr KernelTable filled_table() {
  KernelTable table{};
  table.isa = MFAC_STRING_OF(MFAC_ISA);
#define MFAC_ROOM(room) fill_all(static_cast<room&>(table));
#include "cpu/rooms.inl"
  return table;
}

}  // namespace

#define MFAC_JOIN(a, b) a##b
#define MFAC_TABLE_OF(isa) MFAC_JOIN(kernels_, isa)

extern constinit const KernelTable MFAC_TABLE_OF(MFAC_ISA) = filled_table();

}  // namespace mfac
