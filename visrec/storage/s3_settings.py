"""S3 settings, read once from the environment and the AWS profile for all clients.

boto3 and pyarrow look for the endpoint, certificates, proxy and addressing style in different
places. Here they are read and checked once, by boto3's rules, and then passed to boto3 (small
files, conditional writes), to pyarrow (tables) and, through pyarrow, to Ray Train (checkpoints).
Credentials are not part of the settings; see `visrec.storage.s3_clients`.
"""

import os
import re
import ssl
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path
from botocore.session import Session
from botocore.utils import ensure_boolean, get_environ_proxies

from visrec.errors import InputError

Addressing = Literal["auto", "path", "virtual"]
_ADDRESSING_STYLES: tuple[Addressing, ...] = ("auto", "path", "virtual")
_DEFAULT_REGION = "us-east-1"  # as in AWS and in the stores that imitate it
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"  # of a DNS name; no client accepts _ in a store's name
_PORT = r"(?::(?P<port>[0-9]{1,5}))?/?"
_HOST = rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]){_PORT}"
_PROXY_HOST = rf"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]){_PORT}"


@dataclass(frozen=True)
class Setting:
    """A value, and the variable or AWS profile key that it comes from, for messages."""

    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """What every client of a store is configured with.

    Attributes:
        endpoint: `http(s)://host[:port]`; None for AWS.
        region: region that requests are signed for.
        ca_file: PEM file of the trusted certificate authorities.
        proxy: `http(s)://[user:password@]host:port`; None for a direct connection.
        addressing: whether the bucket is part of the path or of the host name.
    """

    endpoint: Setting | None
    region: str
    ca_file: Setting
    proxy: Setting | None
    addressing: Addressing

    @property
    def store(self) -> str:
        """The store's name in messages."""
        return self.endpoint.value if self.endpoint else "AWS"

    @property
    def boto_proxies(self) -> dict[str, str]:
        """The proxy as botocore expects it, keyed by the scheme of the proxied requests."""
        scheme = urlsplit(self.endpoint.value).scheme if self.endpoint else "https"
        return {scheme: self.proxy.value} if self.proxy else {}

    @property
    def arrow_proxy(self) -> dict[str, str | int] | None:
        """The proxy as pyarrow expects it."""
        if self.proxy is None:
            return None
        url = urlsplit(self.proxy.value)
        options: dict[str, str | int] = {
            "scheme": url.scheme,
            "host": url.hostname or "",
            "port": url.port or 0,
        }
        if url.username is not None:
            options["username"] = unquote(url.username)
            options["password"] = unquote(url.password or "")
        return options


@lru_cache(maxsize=1)
def session(_pid: int) -> Session:
    """boto3's view of the environment and the AWS profile, one per process.

    Raises:
        InputError: the AWS profile cannot be read.
    """
    try:
        botocore = Session()
        botocore.get_scoped_config()  # reports an unknown profile
    except BotoCoreError as error:
        raise InputError(
            f"The AWS configuration cannot be used: {str(error).rstrip('.')}. Check AWS_PROFILE, "
            "AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE."
        ) from error
    return botocore


def configured_endpoint() -> Setting | None:
    """The endpoint that the environment or the profile sets, in boto3's order of precedence.

    Raises:
        InputError: it is not the URL of a store.
    """
    botocore = session(os.getpid())
    profile = botocore.get_scoped_config()
    if botocore.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    services = botocore.full_config.get("services", {}).get(profile.get("services"), {})
    service = services.get("s3", {})
    if not isinstance(service, dict):
        raise _not_a_section("services.s3", service, botocore)
    sources = (
        (os.environ.get("AWS_ENDPOINT_URL_S3"), "AWS_ENDPOINT_URL_S3"),
        (os.environ.get("AWS_ENDPOINT_URL"), "AWS_ENDPOINT_URL"),
        (service.get("endpoint_url"), f"endpoint_url of the services {profile.get('services')!r}"),
        (profile.get("endpoint_url"), f"endpoint_url of {_profile_name(botocore)}"),
    )
    for value, source in sources:
        if value:
            return Setting(_checked_endpoint(value, source), source)
    return None


@lru_cache(maxsize=4)
def read_settings(_pid: int, endpoint: str | None) -> S3Settings:
    """The settings with which this process reaches a store.

    Args:
        endpoint: URL of the store, None for AWS.

    Raises:
        InputError: a setting cannot be used; the message names its variable.
    """
    botocore = session(os.getpid())
    region = botocore.get_config_variable("region") or _DEFAULT_REGION
    if not re.fullmatch(_LABEL, region):
        raise InputError(
            f"Found the AWS region {region!r}; expected a name such as {_DEFAULT_REGION}. Check "
            f"AWS_DEFAULT_REGION and the region of {_profile_name(botocore)}."
        )
    _refuse_special_endpoints(botocore, region)
    configured = configured_endpoint()
    # A worker may get the endpoint from the driver while its own environment sets another.
    source = "AWS_ENDPOINT_URL"
    if configured and configured.value == endpoint:
        source = configured.source
    return S3Settings(
        endpoint=Setting(endpoint, source) if endpoint else None,
        region=region,
        ca_file=_ca_file(botocore),
        proxy=_proxy(endpoint or f"https://s3.{region}.amazonaws.com"),
        addressing=_addressing(botocore, endpoint),
    )


def forget_settings() -> None:
    """Drops the cached settings, so that the environment is read again."""
    session.cache_clear()
    read_settings.cache_clear()


def mask_secrets(address: str) -> str:
    """A URL without its user info, which may contain a password, and without its query, which may
    contain a signature."""
    shown = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:/*)?.*@", r"\1***@", address, flags=re.DOTALL)
    return re.sub(r"\?.*", "?...", shown, flags=re.DOTALL)


def _profile_name(botocore: Session) -> str:
    return f"the AWS profile {botocore.profile or 'default'!r}"


def _checked_endpoint(value: str, source: str) -> str:
    """The endpoint with a lower-case scheme and without a slash at the end."""
    match = _match_address(rf"(?P<scheme>https?)://{_HOST}", value)
    if match is None:
        example = f"http://{value}" if _match_address(_HOST, value) else "http://localhost:9000"
        raise InputError(
            f"Found {source} {mask_secrets(value)!r}; expected http:// or https://, a host and "
            f"optionally a port, such as {example}, without a path, a user or a password. A host "
            "name consists of letters, digits, '-' and '.'. Credentials belong in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return f"{match['scheme'].lower()}://{value.partition('://')[2].rstrip('/')}"


def _match_address(pattern: str, text: str) -> re.Match[str] | None:
    """The parts of an address; None if its host or its port is not valid."""
    match = re.fullmatch(pattern, text, flags=re.IGNORECASE)
    if match is None or not 0 < int(match["port"] or 80) < 1 << 16:
        return None
    if match["host"].startswith("["):
        try:
            IPv6Address(match["host"][1:-1])
        except ValueError:
            return None
    return match


def _ca_file(botocore: Session) -> Setting:
    """The trusted authorities: boto3's own list unless another is configured."""
    sources = (
        (os.environ.get("AWS_CA_BUNDLE"), "AWS_CA_BUNDLE"),
        (botocore.get_scoped_config().get("ca_bundle"), f"ca_bundle of {_profile_name(botocore)}"),
        (os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"),
    )
    path, source = next(
        ((value, source) for value, source in sources if value),
        (str(get_cert_path(True)), "boto3's own list"),
    )
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        reason = "it contains no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise InputError(
            f"Found {source} {path!r}, which cannot be used ({reason}); expected a PEM file with "
            "the certificate of the authority that signed the store's certificate."
        ) from error
    return Setting(path, source)


def _proxy(url: str) -> Setting | None:
    """The proxy for requests to a URL, from the variables that boto3 reads."""
    variable = f"{urlsplit(url).scheme}_proxy"
    value = get_environ_proxies(url).get(urlsplit(url).scheme)
    if not value:
        return None
    source = variable if os.environ.get(variable) else variable.upper()
    full = value if "://" in value else f"http://{value.removeprefix('//')}"
    match = _match_address(rf"(?P<scheme>https?)://(?P<user>[^/@]*@)?{_PROXY_HOST}", full)
    if match is None:
        raise InputError(
            f"Found {source} {mask_secrets(value)!r}; expected an HTTP proxy such as "
            "http://proxy.example:3128, or NO_PROXY with the store's host if it needs no proxy."
        )
    scheme = match["scheme"].lower()
    port = match["port"] or {"http": "80", "https": "443"}[scheme]
    return Setting(f"{scheme}://{match['user'] or ''}{match['host']}:{port}", source)


def _addressing(botocore: Session, endpoint: str | None) -> Addressing:
    """Few stores other than AWS serve a host name per bucket, so the profile must ask for that."""
    style = _s3_section(botocore).get("addressing_style", "auto")
    if style not in _ADDRESSING_STYLES:
        raise InputError(
            f"Found s3.addressing_style {style!r} in {_profile_name(botocore)}; expected one of "
            f"{', '.join(_ADDRESSING_STYLES)}."
        )
    return "path" if endpoint and style == "auto" else cast(Addressing, style)


def _s3_section(botocore: Session) -> dict[str, Any]:
    """The `s3` section of the profile, whose values boto3 does not type.

    Raises:
        InputError: it is a single value.
    """
    section = botocore.get_scoped_config().get("s3") or {}
    if not isinstance(section, dict):
        raise _not_a_section("s3", section, botocore)
    return section


def _not_a_section(key: str, value: object, botocore: Session) -> InputError:
    return InputError(
        f"Found {key} = {value} in {_profile_name(botocore)}; expected nothing after the equals "
        "sign, and indented lines such as `addressing_style = path` below it."
    )


def _refuse_special_endpoints(botocore: Session, region: str) -> None:
    """Refuses settings that send boto3 to an AWS endpoint that pyarrow does not know.

    Raises:
        InputError: such a setting is on.
    """
    section = _s3_section(botocore)
    for name, prefix in (
        ("use_fips_endpoint", "s3-fips."),
        ("use_dualstack_endpoint", "s3.dualstack."),
        ("use_accelerate_endpoint", "s3."),
    ):
        enabled = name in section and ensure_boolean(section[name])
        source = f"s3.{name} of {_profile_name(botocore)}"
        if name != "use_accelerate_endpoint" and botocore.get_config_variable(name):
            enabled, source = True, f"AWS_{name.upper()} (or {name} of {_profile_name(botocore)})"
        if enabled:
            raise InputError(
                f"Found {source} true, which only some S3 clients support; expected it unset, and "
                f"AWS_ENDPOINT_URL=https://{prefix}{region}.amazonaws.com, which all of them use."
            )
