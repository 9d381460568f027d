#include "proto/tls/stream.hpp"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>

#include <cstring>

namespace flotilla::tls {
namespace {

tl::unexpected<Error> openssl_error(const std::string& doing) {
  char text[256] = "no reason given";
  if (const auto number = ERR_get_error()) ERR_error_string_n(number, text, sizeof text);
  ERR_clear_error();
  return fail(Code::authentication_failed, "cannot " + doing + ": " + text);
}

using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free_all)>;
BioPtr memory(std::string_view text) { return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free_all); }

Status load(SSL_CTX* context, const link::TlsIdentity& identity) {
  auto roots = memory(identity.ca);
  int count = 0;
  while (X509* root = PEM_read_bio_X509(roots.get(), nullptr, nullptr, nullptr)) {
    const bool added = X509_STORE_add_cert(SSL_CTX_get_cert_store(context), root) == 1;
    X509_free(root);
    if (!added) return openssl_error("use the CA's certificate");
    ++count;
  }
  ERR_clear_error();  // the end of the text is reported as an error
  if (count == 0) return fail(Code::authentication_failed, "there is no CA certificate to check the other side with");

  auto chain = memory(identity.chain);
  bool first = true;
  while (X509* certificate = PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr)) {
    const bool used = first ? SSL_CTX_use_certificate(context, certificate) == 1 : SSL_CTX_add1_chain_cert(context, certificate) == 1;
    X509_free(certificate);
    if (!used) return openssl_error("use our certificate");
    first = false;
  }
  ERR_clear_error();
  if (first) return fail(Code::authentication_failed, "there is no certificate of our own");

  auto key_text = memory(identity.private_key);
  EVP_PKEY* key = PEM_read_bio_PrivateKey(
      key_text.get(), nullptr, [](char*, int, int, void*) { return -1; }, nullptr);
  const bool used = key && SSL_CTX_use_PrivateKey(context, key) == 1 && SSL_CTX_check_private_key(context) == 1;
  EVP_PKEY_free(key);
  if (!used) return openssl_error("use our private key");
  return {};
}

}  // namespace

Result<ContextPtr> make_context(Role role, const link::TlsIdentity& identity) {
  ContextPtr context(SSL_CTX_new(role == Role::server ? TLS_server_method() : TLS_client_method()), SSL_CTX_free);
  if (!context) return openssl_error("set up TLS");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_AUTO_RETRY | SSL_MODE_RELEASE_BUFFERS);
  // A data connection is made once: no tickets, no renegotiation.
  SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_ENABLE_KTLS);
  SSL_CTX_set_num_tickets(context.get(), 0);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(context.get(), 1);  // fewer system calls; pending() tells what was read ahead
  SSL_CTX_set_default_read_buffer_len(context.get(), 128u << 10);
  if (auto ok = load(context.get(), identity); !ok) return fail(ok.error());
  return context;
}

Stream::Stream(std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl, unique_fd fd) : fd_(std::move(fd)), ssl_(std::move(ssl)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&& other) noexcept {
  ssl_ = std::move(other.ssl_);
  fd_ = std::move(other.fd_);
  cause_ = std::move(other.cause_);
  drained_ = other.drained_;
  return *this;
}
Stream::~Stream() { ssl_.reset(); }

Result<Stream> Stream::make(const ContextPtr& context, Role role, unique_fd fd, std::string_view server_name) {
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl(SSL_new(context.get()), SSL_free);
  if (!ssl || SSL_set_fd(ssl.get(), fd.get()) != 1) return openssl_error("set up TLS");
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  if (role == Role::server) {
    SSL_set_accept_state(ssl.get());
  } else {
    const std::string name(server_name);
    if (name.empty() || SSL_set1_host(ssl.get(), name.c_str()) != 1 || SSL_set_tlsext_host_name(ssl.get(), name.c_str()) != 1)
      return fail(Code::invalid_argument, "a TLS connection needs the name of the server");
    SSL_set_connect_state(ssl.get());
  }
  return Stream(std::move(ssl), std::move(fd));
}

Step Stream::step_of(int result) {
  const int saved = errno;
  const int kind = SSL_get_error(ssl_.get(), result);
  switch (kind) {
    case SSL_ERROR_WANT_READ: return Step::want_read;
    case SSL_ERROR_WANT_WRITE: return Step::want_write;
    case SSL_ERROR_ZERO_RETURN: return Step::ended;
    default: break;
  }
  if (const long verified = SSL_get_verify_result(ssl_.get()); verified != X509_V_OK) {
    cause_ = std::string("the other side's certificate is not good: ") + X509_verify_cert_error_string(verified);
  } else if (const auto number = ERR_peek_error()) {
    const char* reason = ERR_reason_error_string(number);
    cause_ = std::string("TLS: ") + (reason ? reason : "an error without a name");
  } else {
    cause_ = saved ? std::strerror(saved) : "the connection broke";
  }
  ERR_clear_error();
  return Step::failed;
}

Step Stream::handshake() {
  ERR_clear_error();
  errno = 0;
  const int result = SSL_do_handshake(ssl_.get());
  return result == 1 ? Step::done : step_of(result);
}

Status Stream::handshake_within(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (;;) {
    const Step step = handshake();
    if (step == Step::done) return {};
    if (step == Step::failed || step == Step::ended)
      return fail(Code::authentication_failed, step == Step::ended ? "the other side ended the TLS handshake" : cause_);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    if (left <= 0) return fail(Code::timeout, "the TLS handshake took longer than " + std::to_string(limit.count()) + " ms");
    pollfd wait{fd_.get(), static_cast<short>(step == Step::want_read ? POLLIN : POLLOUT), 0};
    poll(&wait, 1, static_cast<int>(left));
  }
}

Moved Stream::read(void* to, std::size_t size) {
  ERR_clear_error();
  errno = 0;
  std::size_t count = 0;
  const int result = SSL_read_ex(ssl_.get(), to, size, &count);
  drained_ = result != 1;
  if (result == 1) return {Step::done, count};
  return {step_of(result), 0};
}

Moved Stream::write(const void* from, std::size_t size) {
  ERR_clear_error();
  errno = 0;
  std::size_t count = 0;
  const int result = SSL_write_ex(ssl_.get(), from, size, &count);
  if (result == 1) return {Step::done, count};
  return {step_of(result), 0};
}

Step Stream::finish() {
  ERR_clear_error();
  errno = 0;
  const int result = SSL_shutdown(ssl_.get());
  if (result >= 0) return Step::done;  // 0: sent, the peer's own is still to come
  return step_of(result);
}

std::string Stream::peer_uri() const {
  X509* certificate = SSL_get0_peer_certificate(ssl_.get());
  if (!certificate) return {};
  std::string uri;
  auto* names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    uri.assign(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier)),
               static_cast<std::size_t>(ASN1_STRING_length(name->d.uniformResourceIdentifier)));
  }
  GENERAL_NAMES_free(names);
  return uri;
}

}  // namespace flotilla::tls
