--
-- PostgreSQL database cluster dump
--

\restrict vD3P69P8XluXnQnP9hgP1esGB0JG5Lkakccc1t7oVhf5YQ7ibCGS1jqlJHHgZcw

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






\unrestrict vD3P69P8XluXnQnP9hgP1esGB0JG5Lkakccc1t7oVhf5YQ7ibCGS1jqlJHHgZcw

--
-- PostgreSQL database cluster dump complete
--

