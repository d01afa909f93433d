"""What must change in the sources of Horovod 0.28.1 for it to build on today's TensorFlow, and not to spin.

Run by build.sh on the unpacked source archive: ``python conf/build/patch_horovod.py FOLDER``. Horovod
has had no release since 2023; each change says what it is for. A text that is not found once ends
the build: then the sources are others, and the change has to be looked at again.
"""

import sys
from pathlib import Path
from typing import NamedTuple


class Change(NamedTuple):
    """One text of a source file, what it becomes, and why."""

    file: str
    old: str
    new: str
    reason: str


CHANGES = (
    Change(
        "horovod/tensorflow/CMakeLists.txt",
        'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        "",
        "Horovod's operations inside jit_compile: they need headers that TensorFlow renamed, and "
        "some that its wheel lacks. chexspark reduces outside of what XLA compiles.",
    ),
    Change(
        "horovod/tensorflow/mpi_ops.cc",
        """\
// Forward declaration of AsGpuStreamValue
namespace stream_executor {
namespace gpu {
GpuStreamHandle AsGpuStreamValue(Stream* stream);
} // namespace stream_executor
} // namespace gpu
#if TENSORFLOW_VERSION >= 2011000000
#include "tensorflow/compiler/xla/stream_executor/stream.h"
#else
#include "tensorflow/stream_executor/stream.h"
#endif // TENSORFLOW_VERSION >= 2011000000
""",
        """\
#include "xla/stream_executor/stream.h"
namespace stream_executor {
namespace gpu {
inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
} // namespace gpu
} // namespace stream_executor
""",
        "Builds for GPUs only. TensorFlow moved the header, and its libraries no longer have the "
        "function (2.21): the stream itself says its handle.",
    ),
    Change(
        "horovod/tensorflow/CMakeLists.txt",
        'set_target_properties(${TF_TARGET_LIB} PROPERTIES OUTPUT_NAME "mpi_lib")\n',
        'set_target_properties(${TF_TARGET_LIB} PROPERTIES OUTPUT_NAME "mpi_lib")\n'
        "set_target_properties(${TF_TARGET_LIB} PROPERTIES BUILD_WITH_INSTALL_RPATH TRUE\n"
        '                      INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib")\n',
        "NCCL is found beside the wheel, wherever it is installed, and not in the environment that "
        "built it. TensorFlow's libraries are loaded before.",
    ),
    Change(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "  std::unique_lock<std::mutex> lock(m_, std::try_to_lock);\n  if (!lock) {\n    return;\n",
        "  std::unique_lock<std::mutex> lock(m_, std::try_to_lock);\n  if (!lock) {\n"
        "    std::this_thread::sleep_for(std::chrono::microseconds(20));\n    return;\n",
        "Gloo's thread asks epoll again and again while another thread of the process has the lock. On a core "
        "that computes too, the one with the lock waits meanwhile for the one that asks: a tenth of a step.",
    ),
    Change(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "#include <array>\n#include <algorithm>\n#include <sstream>\n",
        "#include <algorithm>\n#include <array>\n#include <chrono>\n#include <sstream>\n#include <thread>\n",
        "For the change above.",
    ),
)


def patch(folder: Path) -> None:
    """Make all CHANGES in an unpacked source archive. Raises ValueError for a text not found once."""
    for change in CHANGES:
        path = folder / change.file
        text = path.read_text()
        if text.count(change.old) != 1:
            raise ValueError(
                f"{path}: {change.old!r} is there {text.count(change.old)} times, not once"
            )
        path.write_text(text.replace(change.old, change.new))


if __name__ == "__main__":
    patch(Path(sys.argv[1]))
