"""How S3 is reached: one reading of the environment and the AWS profile, for every client.

boto3 and pyarrow each look for endpoint, certificates, proxy and addressing in places of their own.
Here they are found once, by the rules of boto3, checked, and then given to boto3 (small objects,
conditional writes), pyarrow (tables) and, through pyarrow, Ray Train (checkpoints). Keys are no
part of the settings: `visrec.storage.s3_clients` asks boto3 for them whenever it makes a client.
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
_STYLES: tuple[Addressing, ...] = ("auto", "path", "virtual")
_REGION = "us-east-1"  # where none is configured, as AWS and the stores that imitate it do
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"  # of a name in the DNS: of a store's, no client takes _
_PORT = r"(?::(?P<port>[0-9]{1,5}))?/?"
_HOST = rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]){_PORT}"
_PROXY_HOST = rf"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]){_PORT}"


@dataclass(frozen=True)
class Setting:
    """A value, and the variable or the key of the AWS profile that it comes from."""

    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """What every client of a store is given.

    Attributes:
        endpoint: `http(s)://host[:port]`; None for AWS.
        region: that requests are signed for.
        ca_file: PEM file of the certificate authorities that are trusted.
        proxy: `http(s)://[user:password@]host:port`; None for a direct connection.
        addressing: whether the bucket stands in the path or in the host name.
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
        """The proxy by the scheme of the requests that go through it, as botocore wants it."""
        scheme = urlsplit(self.endpoint.value).scheme if self.endpoint else "https"
        return {scheme: self.proxy.value} if self.proxy else {}

    @property
    def arrow_proxy(self) -> dict[str, str | int] | None:
        """The same as pyarrow wants it."""
        if self.proxy is None:
            return None
        found = urlsplit(self.proxy.value)
        options: dict[str, str | int] = {
            "scheme": found.scheme,
            "host": found.hostname or "",
            "port": found.port or 0,
        }
        if found.username is not None:
            options["username"] = unquote(found.username)
            options["password"] = unquote(found.password or "")
        return options


@lru_cache(maxsize=1)
def session(_pid: int) -> Session:
    """boto3's view of the environment and the profile, one a process.

    Raises:
        InputError: the AWS profile cannot be read.
    """
    try:
        found = Session()
        found.get_scoped_config()  # an unknown profile is noticed only when it is read
    except BotoCoreError as error:
        raise InputError(
            f"The AWS configuration cannot be used: {str(error).rstrip('.')}. Check AWS_PROFILE, "
            "AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE."
        ) from error
    return found


def configured_endpoint() -> Setting | None:
    """The endpoint that the environment or the profile names, in the order of boto3.

    Raises:
        InputError: it is no address of a store.
    """
    botocore = session(os.getpid())
    profile = botocore.get_scoped_config()
    if botocore.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    services = botocore.full_config.get("services", {}).get(profile.get("services"), {})
    service = services.get("s3", {})
    if not isinstance(service, dict):
        raise _no_section("services.s3", service, botocore)
    candidates = (
        (os.environ.get("AWS_ENDPOINT_URL_S3"), "AWS_ENDPOINT_URL_S3"),
        (os.environ.get("AWS_ENDPOINT_URL"), "AWS_ENDPOINT_URL"),
        (service.get("endpoint_url"), f"endpoint_url of the services {profile.get('services')!r}"),
        (profile.get("endpoint_url"), f"endpoint_url of {_profile_name(botocore)}"),
    )
    for value, source in candidates:
        if value:
            return Setting(_checked_endpoint(value, source), source)
    return None


@lru_cache(maxsize=4)
def settings_of(_pid: int, endpoint: str | None) -> S3Settings:
    """How this process reaches a store.

    Args:
        endpoint: of the store; None for AWS.

    Raises:
        InputError: a setting cannot be used; the message names its variable.
    """
    botocore = session(os.getpid())
    region = botocore.get_config_variable("region") or _REGION
    if not re.fullmatch(_LABEL, region):
        raise InputError(
            f"Found the AWS region {region!r}; expected a name such as {_REGION}. Check "
            f"AWS_DEFAULT_REGION and the region of {_profile_name(botocore)}."
        )
    _refuse_special_endpoints(botocore, region)
    here = configured_endpoint()
    # A worker may be told of another endpoint than its own environment names.
    source = here.source if here and here.value == endpoint else "AWS_ENDPOINT_URL"
    return S3Settings(
        endpoint=Setting(endpoint, source) if endpoint else None,
        region=region,
        ca_file=_ca_file(botocore),
        proxy=_proxy(endpoint or f"https://s3.{region}.amazonaws.com"),
        addressing=_addressing(botocore, endpoint),
    )


def forget_settings() -> None:
    """The environment is read again."""
    session.cache_clear()
    settings_of.cache_clear()


def masked(address: str) -> str:
    """An address without its user info, which may be a password."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:/*)?.*@", r"\1***@", address, flags=re.DOTALL)


def _profile_name(botocore: Session) -> str:
    return f"the AWS profile {botocore.profile or 'default'!r}"


def _checked_endpoint(value: str, source: str) -> str:
    """The endpoint with its scheme in lower case and no slash at its end."""
    found = _address(rf"(?P<scheme>https?)://{_HOST}", value)
    if found is None:
        example = f"http://{value}" if _address(_HOST, value) else "http://localhost:9000"
        raise InputError(
            f"Found {source} {masked(value)!r}; expected http:// or https://, a host and at most a "
            f"port, such as {example}, without a path, a user or a password. A host's name has "
            "letters, digits, '-' and '.'. Keys belong in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        )
    return f"{found['scheme'].lower()}://{value.partition('://')[2].rstrip('/')}"


def _address(pattern: str, text: str) -> re.Match[str] | None:
    """The parts of an address, None where it is none: neither its host nor its port may be odd."""
    found = re.fullmatch(pattern, text, flags=re.IGNORECASE)
    if found is None or not 0 < int(found["port"] or 80) < 1 << 16:
        return None
    if found["host"].startswith("["):
        try:
            IPv6Address(found["host"][1:-1])
        except ValueError:
            return None
    return found


def _ca_file(botocore: Session) -> Setting:
    """The trusted authorities: boto3's own list where no other is configured."""
    candidates = (
        (os.environ.get("AWS_CA_BUNDLE"), "AWS_CA_BUNDLE"),
        (botocore.get_scoped_config().get("ca_bundle"), f"ca_bundle of {_profile_name(botocore)}"),
        (os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"),
    )
    path, source = next(
        ((value, source) for value, source in candidates if value),
        (str(get_cert_path(True)), "boto3's own list"),
    )
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        reason = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise InputError(
            f"Found {source} {path!r}, which cannot be used ({reason}); expected a PEM file with "
            "the certificates of the authorities that the store's certificate is signed by."
        ) from error
    return Setting(path, source)


def _proxy(url: str) -> Setting | None:
    """The proxy for the requests to an URL, by the variables that boto3 reads."""
    variable = f"{urlsplit(url).scheme}_proxy"
    value = get_environ_proxies(url).get(urlsplit(url).scheme)
    if not value:
        return None
    source = variable if os.environ.get(variable) else variable.upper()
    full = value if "://" in value else f"http://{value.removeprefix('//')}"
    found = _address(rf"(?P<scheme>https?)://(?P<user>[^/@]*@)?{_PROXY_HOST}", full)
    if found is None:
        raise InputError(
            f"Found {source} {masked(value)!r}; expected an HTTP proxy such as "
            "http://proxy.example:3128, or NO_PROXY with the store's host where none is needed."
        )
    scheme = found["scheme"].lower()
    port = found["port"] or {"http": "80", "https": "443"}[scheme]
    return Setting(f"{scheme}://{found['user'] or ''}{found['host']}:{port}", source)


def _addressing(botocore: Session, endpoint: str | None) -> Addressing:
    """Stores other than AWS seldom serve a host name per bucket, so a profile must ask for it."""
    asked = _s3_section(botocore).get("addressing_style", "auto")
    if asked not in _STYLES:
        raise InputError(
            f"Found s3.addressing_style {asked!r} in {_profile_name(botocore)}; expected one of "
            f"{', '.join(_STYLES)}."
        )
    return "path" if endpoint and asked == "auto" else cast(Addressing, asked)


def _s3_section(botocore: Session) -> dict[str, Any]:
    """What the profile says of S3 alone.

    Raises:
        InputError: it is a value where keys are expected.
    """
    section = botocore.get_scoped_config().get("s3") or {}
    if not isinstance(section, dict):
        raise _no_section("s3", section, botocore)
    return section


def _no_section(key: str, found: object, botocore: Session) -> InputError:
    return InputError(
        f"Found {key} = {found} in {_profile_name(botocore)}; expected nothing behind the equals "
        "sign, and indented lines such as `addressing_style = path` below it."
    )


def _refuse_special_endpoints(botocore: Session, region: str) -> None:
    """Refuses what would lead boto3 to an endpoint of AWS that pyarrow does not know.

    Raises:
        InputError: names the setting.
    """
    section = _s3_section(botocore)
    for name, prefix in (
        ("use_fips_endpoint", "s3-fips."),
        ("use_dualstack_endpoint", "s3.dualstack."),
        ("use_accelerate_endpoint", "s3."),
    ):
        asked = name in section and ensure_boolean(section[name])
        source = f"s3.{name} of {_profile_name(botocore)}"
        if name != "use_accelerate_endpoint" and botocore.get_config_variable(name):
            asked, source = True, f"AWS_{name.upper()} (or {name} of {_profile_name(botocore)})"
        if asked:
            raise InputError(
                f"Found {source} true, by which only some of the clients of S3 would go to another "
                f"endpoint; expected it unset, and AWS_ENDPOINT_URL=https://{prefix}{region}."
                "amazonaws.com to have all of them use one."
            )
