#pragma once
// A folder that appears under its name complete, or not at all.

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>

#include "base/result.h"
#include "files/atomic_file.h"

namespace outrider::moe {

// `fill` writes into FOLDER.partial, which is then renamed to `folder`; that must not exist. After an error, or an
// exception, nothing remains. Code: E_WRITE, and those of `fill`.
inline base::Result<void> WriteFolder(const std::string& folder,
                                      const std::function<base::Result<void>(const std::string& partial)>& fill) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(folder, error)) return base::Fail("E_WRITE", folder + ": exists");
  struct Partial {
    std::string path;
    ~Partial() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } partial{folder + ".partial"};
  fs::remove_all(partial.path, error);
  if (!fs::create_directories(partial.path, error)) {
    return base::Fail("E_WRITE", partial.path + ": create: " + error.message());
  }
  if (auto done = fill(partial.path); !done) return done;
  fs::rename(partial.path, folder, error);
  if (error) return base::Fail("E_WRITE", folder + ": rename: " + error.message());
  return {};
}

inline base::Result<void> WriteText(const std::string& path, std::string_view text) {
  auto file = files::AtomicFile::Create(path);
  if (!file) return tl::unexpected(file.error());
  if (auto done = file->Write(text); !done) return done;
  return file->Commit();
}

}  // namespace outrider::moe
