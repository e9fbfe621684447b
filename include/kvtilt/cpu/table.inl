// SPDX-License-Identifier: MIT
// Fills the kernel table of the instruction set whose namespace this is included in.

template <class FormatList, int Bits>
constexpr void add_width(Kernels& table) {
  if constexpr (FormatList::keys::contains(Bits) || FormatList::values::contains(Bits) ||
                Bits == half_bits) {
    table.float_dot[width_slot(Bits)] = Bits == half_bits ? &dot_all_halves : &dot_floats;
    add_integer_dot<FormatList, Bits>(table);
    table.pack[width_slot(Bits)] = &pack<Bits>;
    table.turn[width_slot(Bits)] = &turn<Bits>;
  }
}

template <class FormatList, int... Bits>
constexpr Kernels make_table(Isa isa, std::integer_sequence<int, Bits...>) {
  Kernels table{.isa = isa,
                .float_dot = {},
                .integer_dot = {},
                .pack = {},
                .turn = {},
                .begin_contraction = &begin_contraction,
                .finish_contraction = &finish_contraction,
                .transform_logits = &transform_logits,
                .update_softmax = &update_softmax,
                .scale = &scale,
                .write_keys = &write_keys,
                .write_values = &write_values,
                .unpack = &unpack,
                .exceeds = &exceeds};
  (add_width<FormatList, Bits>(table), ...);
  return table;
}
