--
-- PostgreSQL database cluster dump
--

\restrict UDu6SJLHIul6QZqC0USbXy8rSBdWiTCASfPysTPcsFvIK0qZIek3k87TZ3kkWak

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






\unrestrict UDu6SJLHIul6QZqC0USbXy8rSBdWiTCASfPysTPcsFvIK0qZIek3k87TZ3kkWak

--
-- PostgreSQL database cluster dump complete
--

