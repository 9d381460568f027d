// flotilla-unpack TARGET PACKED SIZE: reads PACKED bytes of zstd from stdin and makes the executable TARGET of SIZE bytes of
// them, by way of a temporary file beside it. It is sent in front of the agent to machines that have no decompressor of their
// own: static, and as small as may be, so without stdio.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>  // rename
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

static char path[4096 + 16];

static void say(const char* text) {
  size_t left = strlen(text);
  while (left > 0) {
    const ssize_t count = write(2, text, left);
    if (count <= 0) return;
    text += count;
    left -= (size_t)count;
  }
}

static const char* reason(int error) {
  switch (error) {
    case ENOSPC: return "no space is left on the device";
    case EDQUOT: return "the disk quota is used up";
    case EFBIG: return "files there may not be this large";
    case EROFS: return "the file system is read-only";
    case EACCES:
    case EPERM: return "permission denied";
    case ENOENT: return "the directory is gone";
    case EIO: return "input/output error";
    case ENOMEM: return "not enough memory";
  }
  static char text[] = "system error ....";
  for (int i = 16; i > 12; --i, error /= 10) text[i] = (char)('0' + error % 10);
  return text;
}

static int fail(const char* what, const char* why) {
  say(what);
  say(": ");
  say(why);
  say("\n");
  if (path[0]) unlink(path);
  return 1;
}

static unsigned long long number(const char* text) {
  unsigned long long value = 0;
  for (; *text >= '0' && *text <= '9'; ++text) value = value * 10 + (unsigned long long)(*text - '0');
  return *text ? 0 : value;
}

int main(int argc, char** argv) {
  static char in[1 << 16], out[1 << 18];
  if (argc != 4 || strlen(argv[1]) > 4096) return fail("usage", "flotilla-unpack TARGET PACKED SIZE");
  unsigned long long left = number(argv[2]), size = number(argv[3]), written = 0;
  signal(SIGXFSZ, SIG_IGN);  // a file size limit shall be an error, not a death

  size_t length = strlen(argv[1]);
  memcpy(path, argv[1], length);
  path[length++] = '.';
  for (unsigned long pid = (unsigned long)getpid(); pid; pid /= 10) path[length++] = (char)('0' + pid % 10);
  const int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
  if (to < 0) {
    const int error = errno;
    path[0] = 0;
    return fail("cannot create a file", reason(error));
  }
  ZSTD_DStream* stream = ZSTD_createDStream();
  if (!stream) return fail("cannot unpack", reason(ENOMEM));
  size_t state = 1;
  while (left > 0) {
    const ssize_t count = read(0, in, left < sizeof in ? (size_t)left : sizeof in);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return fail("the transfer broke off", count < 0 ? reason(errno) : "the connection was closed");
    left -= (unsigned long long)count;
    ZSTD_inBuffer input = {in, (size_t)count, 0};
    for (;;) {
      ZSTD_outBuffer output = {out, sizeof out, 0};
      state = ZSTD_decompressStream(stream, &output, &input);
      if (ZSTD_isError(state)) return fail("what arrived is damaged", "not the packed agent");
      for (size_t done = 0; done < output.pos;) {
        const ssize_t put = write(to, out + done, output.pos - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return fail("cannot write", reason(put < 0 ? errno : ENOSPC));
        done += (size_t)put;
        written += (unsigned long long)put;
      }
      // A full buffer: more may wait inside, unless that was the end (another call would ask for a next frame).
      if (state == 0 || (input.pos == input.size && output.pos < output.size)) break;
    }
  }
  if (state != 0 || written != size) return fail("what arrived is damaged", "it has the wrong size");
  // Delayed allocation may find out late that there is no room.
  if (close(to) != 0) return fail("cannot write", reason(errno));
  if (rename(path, argv[1]) != 0) return fail("cannot name the agent's file", reason(errno));
  return 0;
}
