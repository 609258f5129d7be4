#pragma once
// Memory for small objects of one type that come and go by the hundred in every step: each thread keeps what it freed
// last, so that taking and giving back cost a few instructions.

#include <cstddef>
#include <new>

namespace outrider::base {

// A class that derives from FreeListed<itself> is allocated from such lists. Classes below it are not: they have another
// size. Objects may be freed by another thread than the one that made them.
template <typename T>
class FreeListed {
 public:
  static void* operator new(std::size_t bytes) {
    Kept& kept = OfThread();
    if (bytes != sizeof(T) || kept.first == nullptr) return ::operator new(bytes);
    --kept.count;
    Node* node = kept.first;
    kept.first = node->next;
    return node;
  }

  static void operator delete(void* memory, std::size_t bytes) noexcept {
    Kept& kept = OfThread();
    if (memory == nullptr || bytes != sizeof(T) || kept.count >= kKeptMax) return ::operator delete(memory);
    if (kept.count++ == 0) FreeAtThreadEnd();
    kept.first = new (memory) Node{kept.first};
  }

  // Objects of this thread that wait for another use.
  static std::size_t KeptCount() noexcept { return OfThread().first == nullptr ? 0 : OfThread().count; }

  static constexpr std::size_t kKeptMax = 8192;  // objects per thread

 private:
  struct Node {
    Node* next;
  };
  struct Kept {  // trivially destructible: objects are freed until the very end of a thread
    Node* first = nullptr;
    std::size_t count = 0;
  };

  static Kept& OfThread() noexcept {
    static_assert(sizeof(T) >= sizeof(Node) && alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
    static thread_local Kept kept;
    return kept;
  }

  static void FreeAtThreadEnd() noexcept {
    struct Owner {
      ~Owner() {
        Kept& kept = OfThread();
        while (kept.first != nullptr) {
          Node* node = kept.first;
          kept.first = node->next;
          ::operator delete(node);
        }
        kept.count = kKeptMax;  // what comes now is not kept any more
      }
    };
    static thread_local Owner owner;
    static_cast<void>(&owner);
  }
};

}  // namespace outrider::base
