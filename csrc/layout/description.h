// A weight's description as text: "int4 4096x11008 1x128 bfloat16 zero_points".
#pragma once

#include "layout/packed.h"

namespace lowbit {

lowbit_status weight_to_text(const lowbit_weight& weight, char* text, size_t bytes);
lowbit_status weight_from_text(const char* text, lowbit_weight* weight);  // checked

}  // namespace lowbit
