#include "proto/tls/certificate.hpp"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <vector>

#include "proto/base/random.hpp"

namespace flotilla::tls {
namespace {

constexpr std::int64_t day_s = 24 * 3600;
constexpr std::int64_t backdate_s = day_s;            // clocks of nodes are off by hours at times
constexpr std::int64_t ca_lifetime_s = 3650 * day_s;  // as long as an instance is likely to be used
constexpr std::int64_t hub_lifetime_s = 365 * day_s;  // renewed after half of it
constexpr std::int64_t pilot_margin_s = 2 * day_s;    // beyond its own time: clocks again
constexpr std::size_t hub_id_limit = 40;

template <auto Free>
struct Freer {
  template <class T>
  void operator()(T* thing) const {
    Free(thing);
  }
};
using BioPtr = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using CertificatePtr = std::unique_ptr<X509, Freer<X509_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, Freer<X509_EXTENSION_free>>;

tl::unexpected<Error> openssl_error(std::string doing) {
  char text[256] = "no reason given";
  if (const auto number = ERR_get_error()) ERR_error_string_n(number, text, sizeof text);
  ERR_clear_error();
  return fail(Code::internal, "cannot " + doing + ": " + text);
}

std::string drain(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<std::size_t>(std::max(size, 0L)));
}

Result<std::string> to_pem(X509* certificate) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1) return openssl_error("write a certificate");
  return drain(bio.get());
}
Result<std::string> to_pem(EVP_PKEY* key) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return openssl_error("write a private key");
  return drain(bio.get());
}
Result<CertificatePtr> read_certificate(std::string_view pem) {
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  CertificatePtr certificate(bio ? PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!certificate) return openssl_error("read a certificate");
  return certificate;
}
// Never asks for a passphrase.
int no_passphrase(char*, int, int, void*) { return -1; }
Result<KeyPtr> read_key(std::string_view pem) {
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  KeyPtr key(bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr) : nullptr);
  if (!key) return openssl_error("read a private key");
  return key;
}

Status add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) return openssl_error("put '" + value + "' into a certificate");
  return {};
}

struct Extension {
  int nid;
  std::string value;
};
struct Wanted {
  std::string common_name;
  std::int64_t until_s = 0;
  std::vector<Extension> extensions;
};
struct Issued {
  std::string certificate, key;
};

// Without issuer: signed by itself.
Result<Issued> issue(const Wanted& wanted, const Authority* issuer, std::int64_t now_s) {
  KeyPtr key(EVP_EC_gen("P-256"));
  CertificatePtr certificate(X509_new());
  if (!key || !certificate) return openssl_error("make a key");
  X509* const subject = certificate.get();

  CertificatePtr issuer_certificate;
  KeyPtr issuer_key;
  if (issuer) {
    auto read = read_certificate(issuer->chain);
    if (!read) return fail(read.error());
    auto signing = read_key(issuer->key);
    if (!signing) return fail(signing.error());
    issuer_certificate = std::move(*read);
    issuer_key = std::move(*signing);
    if (X509_check_private_key(issuer_certificate.get(), issuer_key.get()) != 1) {
      ERR_clear_error();
      return fail(Code::invalid_argument, "an issuing certificate and its key do not belong together");
    }
  }
  X509* const signer = issuer ? issuer_certificate.get() : subject;

  std::string serial = random_bytes(16);
  serial[0] = static_cast<char>((serial[0] & 0x3f) | 0x40);  // positive, and always of 16 bytes
  BIGNUM* number = BN_bin2bn(reinterpret_cast<const unsigned char*>(serial.data()), static_cast<int>(serial.size()), nullptr);
  const bool serial_set = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(subject));
  BN_free(number);

  X509_NAME* name = X509_get_subject_name(subject);
  if (!serial_set || X509_set_version(subject, X509_VERSION_3) != 1 ||
      X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("Flotilla"), -1, -1, 0) != 1 ||
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(wanted.common_name.c_str()), -1, -1, 0) !=
          1 ||
      X509_set_issuer_name(subject, X509_get_subject_name(signer)) != 1 ||
      !ASN1_TIME_set(X509_getm_notBefore(subject), now_s - backdate_s) || !ASN1_TIME_set(X509_getm_notAfter(subject), wanted.until_s) ||
      X509_set_pubkey(subject, key.get()) != 1)
    return openssl_error("fill in a certificate");
  // Nothing outlives what vouches for it.
  if (issuer && ASN1_TIME_compare(X509_get0_notAfter(subject), X509_get0_notAfter(signer)) > 0 &&
      X509_set1_notAfter(subject, X509_get0_notAfter(signer)) != 1)
    return openssl_error("fill in a certificate");

  if (auto ok = add_extension(subject, signer, NID_subject_key_identifier, "hash"); !ok) return fail(ok.error());
  if (issuer)
    if (auto ok = add_extension(subject, signer, NID_authority_key_identifier, "keyid:always"); !ok) return fail(ok.error());
  for (const auto& extension : wanted.extensions)
    if (auto ok = add_extension(subject, signer, extension.nid, extension.value); !ok) return fail(ok.error());
  if (X509_sign(subject, issuer ? issuer_key.get() : key.get(), EVP_sha256()) == 0) return openssl_error("sign a certificate");

  auto certificate_pem = to_pem(subject);
  if (!certificate_pem) return fail(certificate_pem.error());
  auto key_pem = to_pem(key.get());
  if (!key_pem) return fail(key_pem.error());
  return Issued{std::move(*certificate_pem), std::move(*key_pem)};
}

Status check_hub_id(std::string_view hub_id) {
  const bool good =
      !hub_id.empty() && hub_id.size() <= hub_id_limit && hub_id.front() != '-' && hub_id.back() != '-' &&
      std::all_of(hub_id.begin(), hub_id.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
  if (!good)
    return fail(Code::invalid_argument,
                "'" + std::string(hub_id) + "' cannot be a hub's id: 1 to 40 of a-z, 0-9 and, not at its ends, '-'");
  return {};
}

}  // namespace

Result<Authority> make_ca(std::string_view instance, std::int64_t now_ms) {
  const std::int64_t now_s = now_ms / 1000;
  // pathlen 1: one CA below it (a hub's), and what that issues.
  auto issued = issue({"instance " + to_hex(instance),
                       now_s + ca_lifetime_s,
                       {{NID_basic_constraints, "critical,CA:TRUE,pathlen:1"}, {NID_key_usage, "critical,keyCertSign"}}},
                      nullptr, now_s);
  if (!issued) return fail(issued.error());
  return Authority{std::move(issued->certificate), std::move(issued->key)};
}

Result<Authority> issue_intermediate(const Authority& ca, std::string_view hub_id, std::int64_t now_ms) {
  if (auto ok = check_hub_id(hub_id); !ok) return fail(ok.error());
  const std::int64_t now_s = now_ms / 1000;
  auto issued = issue({"hub " + std::string(hub_id),
                       now_s + hub_lifetime_s,
                       {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                        {NID_key_usage, "critical,keyCertSign"},
                        // A hub that was broken into cannot pose as another one.
                        {NID_name_constraints, "critical,permitted;DNS:" + server_name(hub_id)}}},
                      &ca, now_s);
  if (!issued) return fail(issued.error());
  return Authority{std::move(issued->certificate), std::move(issued->key)};
}

Result<link::TlsIdentity> issue_server(const Authority& hub, std::string_view root, std::string_view hub_id, std::int64_t now_ms) {
  if (auto ok = check_hub_id(hub_id); !ok) return fail(ok.error());
  const std::int64_t now_s = now_ms / 1000;
  auto issued = issue({"server",
                       now_s + hub_lifetime_s,
                       {{NID_basic_constraints, "critical,CA:FALSE"},
                        {NID_key_usage, "critical,digitalSignature"},
                        {NID_ext_key_usage, "serverAuth"},
                        {NID_subject_alt_name, "DNS:" + server_name(hub_id)}}},
                      &hub, now_s);
  if (!issued) return fail(issued.error());
  return link::TlsIdentity{std::string(root), issued->certificate + hub.chain, std::move(issued->key)};
}

Result<link::TlsIdentity> issue_pilot(const Authority& hub, std::string_view root, PilotId pilot, std::int64_t lifetime_ms,
                                      std::int64_t now_ms) {
  const std::int64_t now_s = now_ms / 1000;
  const std::int64_t until = now_s + (lifetime_ms > 0 ? lifetime_ms / 1000 + pilot_margin_s : hub_lifetime_s);
  auto issued = issue({"pilot " + std::to_string(pilot.value),
                       until,
                       {{NID_basic_constraints, "critical,CA:FALSE"},
                        {NID_key_usage, "critical,digitalSignature"},
                        {NID_ext_key_usage, "clientAuth"},
                        {NID_subject_alt_name, "URI:" + format_pilot_uri(pilot)}}},
                      &hub, now_s);
  if (!issued) return fail(issued.error());
  return link::TlsIdentity{std::string(root), issued->certificate + hub.chain, std::move(issued->key)};
}

std::string server_name(std::string_view hub_id) { return std::string(hub_id) + ".flotilla"; }

namespace {
constexpr std::string_view pilot_uri_prefix = "flotilla:pilot/";
}

std::string format_pilot_uri(PilotId pilot) { return std::string(pilot_uri_prefix) + std::to_string(pilot.value); }

Result<PilotId> parse_pilot_uri(std::string_view uri) {
  PilotId pilot;
  if (uri.starts_with(pilot_uri_prefix)) {
    const std::string_view digits = uri.substr(pilot_uri_prefix.size());
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), pilot.value);
    // Only what format_pilot_uri writes: no zero, no leading zeros.
    if (parsed.ec == std::errc{} && pilot && format_pilot_uri(pilot) == uri) return pilot;
  }
  return fail(Code::permission_denied, "the certificate names no pilot but '" + std::string(uri) + "'");
}

Result<std::int64_t> valid_until_ms(std::string_view chain) {
  auto certificate = read_certificate(chain);
  if (!certificate) return fail(certificate.error());
  std::tm end{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate->get()), &end) != 1) return openssl_error("read a certificate's end");
  return static_cast<std::int64_t>(timegm(&end)) * 1000;
}

}  // namespace flotilla::tls
