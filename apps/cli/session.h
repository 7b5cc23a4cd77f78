// The name that compare and sweep still have for loaded_model.h. (A session is one of Python's: a pass with what it holds.)
#pragma once

#include "loaded_model.h"  // IWYU pragma: export
