--
-- PostgreSQL database cluster dump
--

\restrict UTVEBZsHXiqUxWN2fT5shXDJIo7evDzS0vfutIbs16D8CQV3vYb9EwP4WdWSLR8

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE ovia;
ALTER ROLE ovia WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS;
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS;
CREATE ROLE readers;
ALTER ROLE readers WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;

--
-- User Configurations
--


--
-- Role memberships
--

GRANT readers TO ovia WITH INHERIT TRUE GRANTED BY postgres;






\unrestrict UTVEBZsHXiqUxWN2fT5shXDJIo7evDzS0vfutIbs16D8CQV3vYb9EwP4WdWSLR8

--
-- PostgreSQL database cluster dump complete
--

