"""Guesses of columns, on headers of real shops and data sets."""

import shlex

import pytest
import yaml

from visrec.storage.column_guess import guess_columns, suggest_mapping

LOG = ["user_id", "item_id", "timestamp"]
SHOPIFY = (
    "Name,Email,Financial Status,Paid at,Fulfilled at,Currency,Subtotal,Total,Created at,"
    "Lineitem quantity,Lineitem name,Lineitem price,Lineitem sku,Billing Name,Shipping City,Id"
)
HEADERS = {
    "order_no,customer_email,sku,ordered_at": ["customer_email", "sku", "ordered_at"],
    "id,created_at,updated_at,user_id,product_id": ["user_id", "product_id", "created_at"],
    "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country": [
        "CustomerID", "StockCode", "InvoiceDate",
    ],
    SHOPIFY: ["Email", "Lineitem sku", "Created at"],
    "userId,movieId,rating,timestamp": ["userId", "movieId", "timestamp"],
    "rating,title,text,images,asin,parent_asin,user_id,timestamp,helpful_vote": [
        "user_id", "parent_asin", "timestamp",
    ],
    "order_id;order_date;customer_id;customer_name;product_name;article_number": [
        "customer_id", "article_number", "order_date",
    ],
    "event_time,event_type,product_id,category_id,brand,price,user_id,user_session": [
        "user_id", "product_id", "event_time",
    ],
    "t_dat,customer_id,article_id,price,sales_channel_id": ["customer_id", "article_id", "t_dat"],
    "Best.Nr.;Kunden-E-Mail;Artikel-Nr.;Größe;Preis (€);Bestelldatum;Bewertung": [
        "Kunden-E-Mail", "Artikel-Nr.", "Bestelldatum",
    ],
    "Kundennummer;Kunden Vorname;Artikelbezeichnung;Artikelnummer;Lieferdatum;Datum": [
        "Kundennummer", "Artikelnummer", "Datum",
    ],
    "Geburtsdatum;Kunden-Telefon;Artikel-Größe": [None, None, None],
    "USER_ID,ITEM_ID,TIMESTAMP": ["USER_ID", "ITEM_ID", "TIMESTAMP"],
    "a,b,c": [None, None, None],
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_columns_are_guessed_by_their_names(header: str) -> None:
    names = header.split(";" if ";" in header else ",")
    guesses = guess_columns(LOG, names)
    assert [guesses.get(column) for column in LOG] == HEADERS[header]


def test_columns_of_availability_are_guessed_in_german() -> None:
    names = ["Artikel-Nr.", "Größe", "verfügbar", "Lagerbestand"]
    found = guess_columns(["available", "stock"], names)
    assert found == {"available": "verfügbar", "stock": "Lagerbestand"}


@pytest.mark.parametrize("name", ["it's", "no", "a: b", "Größe", "{x}", 'say "hi"', "1", "Paid at"])
def test_suggested_mapping_survives_shell_and_yaml(name: str) -> None:
    text = suggest_mapping({"item_id": name, "user_id": "email"})
    (argument,) = shlex.split(text)
    assert yaml.safe_load(argument) == {"item_id": name, "user_id": "email"}
