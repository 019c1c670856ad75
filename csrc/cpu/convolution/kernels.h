// All of a float32 convolution's.

#include "lanes.h"
#include "product.h"
#include "tiles.h"
#include "pair.h"
#include "end.h"
#include "activation.h"
