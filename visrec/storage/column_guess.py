"""Guesses which columns of a table hold its users, items, timestamps and stock, by their names.

A guess is only shown to the user, in the message about a missing column; no job reads by it.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLACEHOLDER = "COLUMN"  # in a mapping, for a column without any guess
_E_MAIL = re.compile(r"e[-_ ]mail", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")  # of customerEmail, StockCode, ORDER_ID
_PLAIN_YAML = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*( [A-Za-z0-9_.-]+)*")
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


@dataclass(frozen=True)
class _Vocabulary:
    """Words in the names of a column, with how much each says for it.

    Attributes:
        subjects: a name needs one of these.
        qualifiers: words that decide between several such names.
        other: words of columns that only mention the subject, such as its name or price.
    """

    subjects: Mapping[str, int]
    qualifiers: Mapping[str, int]
    other: frozenset[str]

    def score(self, name: str) -> int:
        """How well a column's name fits; 0 if it does not."""
        words = [word.lower() for word in _WORD.findall(_E_MAIL.sub("email", _ascii(name)))]
        if self.other & {*words}:
            return 0
        subject = max((self.subjects.get(word, 0) for word in (*words, "".join(words))), default=0)
        return subject and subject + sum(self.qualifiers.get(word, 0) for word in words)


_PERSON = ("user", "customer", "client", "buyer", "shopper", "visitor", "member", "account",
           "reviewer", "subscriber", "consumer", "kunde", "kunden", "klant", "cliente")  # fmt: skip
_THING = ("item", "product", "article", "artwork", "listing", "movie", "book", "track", "song",
          "variant", "artikel", "produkt", "producto", "produit")  # fmt: skip
_KEY = {"id": 6, "number": 4, "no": 4, "nr": 4, "key": 4, "code": 4, "uuid": 6, "hash": 3}
_DETAILS = ("name", "title", "type", "category", "group", "price", "amount", "total", "quantity",
            "qty", "count", "image", "url", "description", "status", "note", "notes", "tags",
            "phone", "address", "city", "country", "zip", "first", "last", "age", "gender", "brand",
            "color", "colour", "size", "weight", "rating", "order", "invoice",
            "bezeichnung", "titel", "typ", "kategorie", "gruppe", "preis", "betrag", "menge",
            "anzahl", "bild", "beschreibung", "telefon", "adresse", "strasse", "ort", "land",
            "plz", "vorname", "nachname", "alter", "farbe", "grosse", "marke",
            "bewertung")  # fmt: skip

_VOCABULARIES = {
    "user_id": _Vocabulary(
        {**dict.fromkeys(_PERSON, 10), "uid": 14, "userid": 16, "customerid": 16, "email": 8,
         **dict.fromkeys(("kundennummer", "kundennr", "kundenid", "kundenemail"), 14)},
        {**_KEY, "email": 4},
        frozenset({*_DETAILS, *_THING}),
    ),
    "item_id": _Vocabulary(
        {**dict.fromkeys(_THING, 10), "sku": 16, "asin": 15, "isbn": 14, "ean": 13, "gtin": 13,
         "upc": 13, "itemid": 16, "productid": 16, "stockcode": 16, "iid": 14,
         **dict.fromkeys(("artikelnummer", "artikelnr", "artikelid"), 14),
         **dict.fromkeys(("produktnummer", "produktnr", "produktid"), 14)},
        {**_KEY, "parent": 1},
        frozenset({*_DETAILS, *_PERSON}),
    ),
    "timestamp": _Vocabulary(
        {"timestamp": 12, "datetime": 11, "date": 10, "time": 10, "at": 10, "ts": 9, "when": 8,
         "dat": 8, "day": 6, "datum": 10, "fecha": 10, "zeit": 8, "zeitpunkt": 10,
         **dict.fromkeys(("bestelldatum", "kaufdatum", "bestellzeit", "auftragsdatum"), 14),
         "rechnungsdatum": 13},
        {**dict.fromkeys(("order", "ordered", "purchase", "purchased", "bought", "sold"), 4),
         **dict.fromkeys(("invoice", "transaction", "event", "checkout"), 3),
         **dict.fromkeys(("created", "placed", "sale", "interaction", "rated", "review"), 2),
         "paid": 1},  # an order that is not paid yet has no such time
        frozenset({"updated", "modified", "shipped", "delivered", "delivery", "cancelled",
                   "canceled", "refunded", "returned", "birth", "expires", "expiry", "deleted",
                   "fulfilled", "zone", "timezone", "closed"}),
    ),
    "available": _Vocabulary(
        {"instock": 12, "isinstock": 12, "active": 8, "enabled": 8, "sellable": 10, "forsale": 10,
         "purchasable": 10, "buyable": 10, "lieferbar": 10, "verfugbar": 10,
         "aktiv": 8},
        {"is": 2},
        frozenset({"date", "at", "since", "until", "from", "count"}),
    ),
    "stock": _Vocabulary(
        {"stock": 8, "inventory": 8, "onhand": 8, "bestand": 8, "lagerbestand": 10},
        {"quantity": 3, "qty": 3, "level": 2, "count": 2, "available": 1},
        frozenset({"code", "id", "status", "date", "at", "in", "is", "location", "name"}),
    ),
}  # fmt: skip


def guess_columns(missing: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The likeliest column for each missing one, where a name speaks for it.

    Args:
        missing: declared columns that the table does not have.
        names: the columns that it has.
    """
    guesses: dict[str, str] = {}
    for column in missing:
        free = [name for name in names if name not in guesses.values()]
        best = max(free, key=lambda name: _score(column, name), default=None)
        if best is not None and _score(column, best):
            guesses[column] = best
    return guesses


def _score(column: str, name: str) -> int:
    """How well a name fits a declared column; its own name, written differently, fits best."""
    if _normalized(name) == _normalized(column):
        return 100
    vocabulary = _VOCABULARIES.get(column)
    return vocabulary.score(name) if vocabulary else 0


def _normalized(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _ascii(name).lower())


def _ascii(name: str) -> str:
    """A name without accents: verfugbar for verfügbar, Grosse for Größe."""
    decomposed = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def suggest_mapping(mapping: Mapping[str, str]) -> str:
    """A mapping of declared columns to those of the files, as an argument of a shell."""
    pairs = [f"{column}: {_yaml(stored)}" for column, stored in mapping.items()]
    return shlex.quote("{" + ", ".join(pairs) + "}")


def _yaml(name: str) -> str:
    """A name as a value in YAML's braces."""
    is_plain = _PLAIN_YAML.fullmatch(name) and name.lower() not in _YAML_WORDS
    return name if is_plain else json.dumps(name, ensure_ascii=False)
