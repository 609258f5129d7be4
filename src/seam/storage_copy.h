#pragma once
// Bytes of one storage in another, on the stream of the calling thread.

#include <c10/core/Storage.h>

#include "seam/storage_record.h"

namespace outrider::seam {

// A copy of all bytes of a storage, in a storage of its own.
c10::Storage CopyStorage(const c10::Storage& storage);
// Overwrites the bytes of `target`; both have the same size.
void OverwriteStorage(const c10::Storage& target, const c10::Storage& source);
// The same bytes without ownership.
c10::Storage AliasStorage(const c10::Storage& storage);

}  // namespace outrider::seam
